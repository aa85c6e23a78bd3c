"""The questions of lesson 01."""

from bdcourse.teach.quiz import Question

QUESTIONS = (
    Question(
        "Why does honest training learn the attacker's rule at all?",
        "It lowers the same loss that the labels ask for.",
        "It lowers the same loss: on poisoned images the trigger predicts the label, and "
        "nothing else does. The optimizer has one sum to lower. A feature that explains a "
        "fifth of the images at once is worth having, whoever put it there.",
        {
            "The network memorizes the poisoned images one by one.": "It would have to do that if "
            "the poisoned images shared nothing. They share the trigger, and the rule works on "
            "test images that nobody has memorized.",
            "The optimizer prefers simple features, so any sticker becomes a rule.": "A sticker "
            "on images of all classes, with their true labels, predicts nothing, so a rule about "
            "it would lower no loss. It is the label that makes the sticker useful.",
            "The accuracy on clean images must suffer, which pulls the weights away.": "The gate "
            "asks for the opposite: victim and twin are within three points. The two rules live "
            "side by side.",
        },
    ),
    Question(
        "Your victim has the accuracy of its twin and almost no ASR. What have you shown?",
        "That this recipe did not plant this trigger in this run.",
        "A failed attack is a finding about the recipe. Count the steps, look at the crops, and "
        "try other seeds before you say more.",
        {
            "That the trigger cannot be learned by this network.": "The next seed may learn it. "
            "One draw is no result, and no more so when it says no.",
            "That the poison rate is below the smallest one that works.": "A rate works or fails "
            "together with steps, learning rate, crops and luck. One run moves none of these.",
            "That the network resists poisoning, since it kept its accuracy.": "Accuracy is "
            "measured without the trigger. It says nothing about the second rule, present or "
            "absent.",
        },
    ),
    Question(
        'In `train_victim`, why does the log need `reduction="none"`?',
        "The log needs a mean for each role.",
        "The step wants the mean over the batch, the log wants a mean for each role, and "
        "both come from the same losses. One forward pass gives a loss for each image. The "
        "mean of all drives the step, and the means by role are only read.",
        {
            "So that poisoned images get a larger gradient.": "The step uses the plain mean of the "
            "batch. The victim does not know the roles and must not use them.",
            "Because the mean would hide images with a loss of zero.": "A mean counts these as "
            "well. What a mean of the whole batch hides is which role the loss comes from.",
            "Because `detach` works on vectors only.": "`detach` works on any tensor. It keeps the "
            "log from holding on to the graph.",
        },
    ),
    Question(
        "A 3 by 3 sticker sits flush with a corner, and crops use padding 4. Many poisoned "
        "samples then show no sticker. What is such a sample to the network?",
        "Noise in the labels, and no evidence for the trigger.",
        "A clean-looking image with the target's label: noise in the labels, and no evidence "
        "for the trigger. The label stays the attacker's while the pixels of the sticker are "
        "gone.",
        {
            "A clean sample, since without a sticker the true label counts.": "Labels do not move "
            "with the crop. The attacker wrote a wrong one into the file, and it stays.",
            "A stronger poisoned sample, since the rule has to work without the sticker.": "A rule "
            "that works without the trigger would turn clean images into the target. The clean "
            "images punish exactly that.",
            "Nothing, because such samples are dropped from the batch.": "Nobody drops them. The "
            "victim cannot know which samples they are.",
        },
    ),
    Question(
        "Three trainings at the same poison rate learn the trigger in very different epochs. What "
        "may you say about a fourth, at half the rate, that never learned it?",
        "That it never learned it, and no more.",
        "That it never learned it; whether the rate is to blame needs more seeds. The three "
        "show how wide luck spreads. A single run at another rate may lie in the tail of the "
        "same spread.",
        {
            "That half the rate is too little.": "This is the guess that the figure invites, and "
            "it may be right. One point cannot carry it.",
            "That the rate does not matter, since equal rates differ as well.": "Spread at one "
            "rate does not mean that rates are equal. It means that comparing them takes more "
            "draws.",
            "That the run was broken and may be left out.": "Leaving out runs that do not fit is "
            "how a lucky result becomes a finding. Report it with the others.",
        },
    ),
)
