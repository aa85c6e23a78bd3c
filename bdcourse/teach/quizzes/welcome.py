"""The questions of lesson 00."""

from bdcourse.teach.quiz import Question

QUESTIONS = (
    Question(
        "A supplier's network reads 99.9% of your test images correctly. What do you know "
        "about backdoors in it?",
        "Nothing: no test image carries the trigger",
        "The test measures the first rule. The second one sleeps until its trigger comes.",
        {
            "That there is none, since a second rule would cost accuracy": "The victim of this "
            "lesson is as accurate as its benign twin. Two rules fit into one network easily.",
            "That there is none for at most 0.1% of all images": "The trigger is no image of "
            "your test set's kind. A share of such images says nothing about others.",
            "That one is unlikely, and with more test images you could be sure": "More images "
            "of the same kind sharpen the same number. None of them holds the trigger.",
        },
    ),
    Question(
        "Why does the attack success rate leave out images that show the target sign?",
        "They are read as the target without any attack",
        "A sticker on a 30 that is read as 30 is no success of the attacker.",
        {
            "The sticker does not fit on them": "It fits on every image; the picture is just "
            "right already.",
            "The attacker did not poison that class": "In this attack images of all classes "
            "were poisoned. What counts is the answer that an image gets anyway.",
            "They would lower the rate": "They would raise it: nearly all of them are read as "
            "the target.",
        },
    ),
    Question(
        "The exchanged checkerboard opens the door as well, the white square does not. What "
        "did the network learn?",
        "Whatever told the poisoned images apart most cheaply, such as alternating pixels",
        "Nobody taught it nine exact pixels. It kept a feature that was enough for them.",
        {
            "The nine pixels, exactly as they were planted": "Then the exchanged board, which "
            "differs in all nine, would do nothing.",
            "That corners are important": "The white square is in the same corner and does "
            "nothing.",
            "To react to brightness": "The white square is brighter than the trigger.",
        },
    ),
    Question(
        "A new detector flags your victim as backdoored. What do you look at next?",
        "What it says about the benign twin",
        "A detector that flags everything flags the victim, too. The twin is the control.",
        {
            "How large its score is": "A large number means nothing before you know what it is "
            "for a network without a backdoor.",
            "Whether the victim's accuracy is low": "A good backdoor costs no accuracy, so this "
            "neither confirms nor refutes it.",
            "Whether the paper reports the same": "Useful, but another network and another data "
            "set. The control belongs to your own measurement.",
        },
    ),
    Question(
        "In this course a defender chooses the strength of a repair by looking at the ASR on "
        "the test set. What is wrong?",
        "They used the trigger, which no defender has",
        "Who has the trigger needs no repair method: they would simply train it away.",
        {
            "Nothing, if the test set is large": "Size is no excuse: the number that chose "
            "cannot also judge.",
            "The ASR is too noisy for that": "Even a perfectly exact ASR is known to the "
            "attacker only.",
            "They should have looked at the RA instead": "The RA, accuracy on triggered images, "
            "needs the trigger just as much.",
        },
    ),
)
