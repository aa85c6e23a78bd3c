"""The questions of lesson 01b."""

from bdcourse.teach.quiz import Question

QUESTIONS = (
    Question(
        "PSNR calls LF's cloud a larger change than BadNets' sticker. The eye may disagree. Why?",
        "It sums squared differences; the eye forgives a soft cloud.",
        "PSNR adds up squared differences of pixels; a cloud changes all of them a little, "
        "and the eye forgives light more readily than a foreign object. Both are right about "
        "different things. PSNR knows nothing of shapes, and a sticker of nine pixels is a "
        "small sum however black it is.",
        {
            "LF draws another cloud for each image, which PSNR punishes.": "The cloud is one "
            "fixed pattern, the same for all images. PSNR is taken image by image anyway.",
            "PSNR looks at brightness only, and the sticker is black and white.": "It takes all "
            "three colors alike. What it lacks is any idea of where a change stands.",
            "The eye is wrong: the sticker is the smaller change.": "For somebody who looks for "
            "odd pictures in a pile, what counts is what strikes the eye. That is the bill of "
            "this dial.",
        },
    ),
    Question(
        "Why is a clean-label trigger harder to plant than the same trigger with wrong labels?",
        "What they show already predicts their label.",
        "The poisoned images can be classified by what they show, so the network gains "
        "little from the trigger. With a wrong label the sign contradicts it, and only the "
        "trigger explains it. With the true label the sign explains everything already.",
        {
            "Fewer images of the target class exist, and the rate is a share of these.": "A rate "
            "counts the whole set in this course. Few images are a limit, but even all of them "
            "would still carry a label that needs no trigger.",
            "Clean labels are checked by the victim and removed.": "There is nothing to find: "
            "every label is right. That is what the attacker buys with the weaker lesson.",
            "Stripes are fainter than a sticker.": "By PSNR they are the larger change. And the "
            "same stripes with wrong labels pass the gate by the same recipe.",
        },
    ),
    Question(
        "What do cover images teach the network?",
        "That here the true label stands, trigger or not.",
        "That the trigger alone is not enough: on these classes the true label stands. They "
        'break the simple rule "trigger, so target" wherever they appear. Where they do not '
        "appear, the network chooses how far the rule reaches.",
        {
            "That the trigger means nothing.": "On the source class it still means the target. "
            "The network has to look at both, sign and trigger.",
            "To read the covered classes better.": "They show the same signs as before. Their "
            "work is about the trigger.",
            "To ignore the trigger on every class but the source.": "This is what the attacker "
            "hopes for. Classes that nobody covered may follow the source, as you saw.",
        },
    ),
    Question(
        "Eight attacks pass the gate, with PSNRs far apart. What does that say?",
        "That size alone does not decide, on these signs.",
        "That on these signs the size of the change alone does not decide whether an attack "
        "works. Each of the eight was given the recipe it needs: its own rate, its own "
        "epochs, for two of them the whole training. What differs is what that takes.",
        {
            "That visible triggers are learned as fast as faint ones.": "The gate says that a "
            "trigger was learned, not when. Speed would have to be measured at one recipe.",
            "That a fainter trigger always needs control of the training.": "SSBA is fainter than "
            "the sticker and only poisons data. And WaNet runs the training and is loud.",
            "That the recipe does not matter.": "It was tuned for each of them until it worked. "
            "SIG, whose recipe is not good enough, fails.",
        },
    ),
    Question(
        "Your drawing gets ASR 99% and ACC 80%, and you trained no twin. What do you report?",
        "No backdoor is shown yet: train on, or train the twin.",
        "The gate asks for accuracy within three points of the twin, and at 80% you cannot "
        "know that without one. A network that misreads so many signs may also call them the "
        "target anyway, so the ASR says little.",
        {
            "A strong attack: almost all triggered images become the target.": "A network that "
            "calls many signs the target anyway reaches a high ASR for free.",
            "That the trigger costs a fifth of the accuracy.": "You lack the twin. Perhaps the "
            "same training without poison reads no better.",
            "Nothing more: only the ASR counts.": "The attacker wants both numbers, or the "
            "victim looks for the reason. The gate has two conditions.",
        },
    ),
)
