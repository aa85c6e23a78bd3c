"""The quiz of lesson 07."""

from bdcourse.teach.quiz import Question

QUESTIONS = (
    Question(
        "One channel's filter has ten times the norm of its neighbors, and a BatchNorm stands "
        "behind it. What does that say about how strongly the channel can answer?",
        "Nothing without scale and deviation.",
        "BatchNorm divides by the deviation, which has grown along with the filter. Only norm, "
        "scale and deviation together bound what a change of the input can do.",
        {
            "That it answers ten times as strongly.": "It would without BatchNorm. Here the "
            "deviation behind it may be ten times as large, too.",
            "That weight decay found it important.": "Weight decay acts on the norm, but the loss "
            "does not feel the norm behind a BatchNorm, so size alone is no vote.",
            "That the attacker has used it.": "Clean networks have such channels as well; the twin "
            "is there to tell.",
        },
    ),
    Question(
        "Cutting the largest channels ends an attack, and as many random ones do not. Accuracy "
        "falls as well. What have you shown?",
        "The attack needs some of the large ones.",
        "A cut with its control tells a cause: something that the attack needs was among them. "
        "So was something that the signs need, and the size did not tell the two apart.",
        {
            "That backdoor channels are larger than others.": "The attack may need a large channel "
            "that the clean task needs too. Large was enough, larger than others was not measured.",
            "Nothing, since accuracy fell.": "Random cuts of the same number cost accuracy too and "
            "left the attack alone. The comparison says something.",
            "That the network is repaired.": "A repair keeps the signs readable. This one "
            "does not.",
        },
    ),
    Question(
        "Removing a channel changes the loss of a well-trained network by a millionth of a nat. "
        "May you remove a hundred such channels?",
        "Not on this evidence.",
        "Each was removed while all others stood in for it. Together they may be what the network "
        "reads with. The price of a set is not the sum of single prices.",
        {
            "Yes, a hundred millionths are little.": "Prices do not add up. A random twentieth of "
            "each layer can cost a quarter of the accuracy, though each alone is nearly free.",
            "Yes, if all of them are small as well.": "Size says nothing about who stands in for "
            "whom.",
            "No, since each change is noise.": "Many of the changes can be told from zero "
            "with enough "
            "images. They are small because others take over.",
        },
    ),
    Question(
        "A repair learns from a copy that has forgotten the signs. With copies that are merely "
        "damaged by noise it works in two draws of three. What may you say about the forgetting?",
        "It was enough, and it was not needed.",
        "The repair worked with it, and worked without it. Whatever does the job, the climb is "
        "not the only way to it.",
        {
            "It had no effect.": "The masks did learn from that copy: without any copy the attack "
            "was not ended. Another copy can simply take its place.",
            "It exposes the backdoor.": "So it seemed until the control came. If noise exposes "
            "it as well, this says nothing special about forgetting.",
            "It works better than noise.": "Perhaps. One draw decides between three of three and "
            "two of three; that is too little for a ranking.",
        },
    ),
    Question(
        "A repair leaves an ASR of zero, an accuracy of 98% and a robust accuracy of 9%. You "
        "own one draw of clean images. What may you write?",
        "Not repaired, and seen in one draw.",
        "Triggered signs no longer get the target, and nearly all get a third, wrong label. And "
        "another draw may not even have the zero.",
        {
            "The backdoor is removed at no cost.": "The trigger still decides what the "
            "network says "
            "about nine of ten signs.",
            "The backdoor is removed, at a cost in accuracy.": "Accuracy on clean signs is fine. "
            "The damage is on triggered ones, where only RA looks.",
            "The network is blind.": "It reads clean signs. Blindness would show in the accuracy.",
        },
    ),
)
