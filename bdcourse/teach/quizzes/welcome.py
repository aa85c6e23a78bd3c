"""The questions of lesson 00."""

from bdcourse.teach.quiz import Question

QUESTIONS = (
    Question(
        "A supplier's network reads 99.9% of your test images correctly. What do you know "
        "about backdoors in it?",
        "Nothing: no test image carries the trigger",
        "The test measures the first rule. The second one sleeps until its trigger comes.",
        {
            "That there is none, since a second rule would cost accuracy": "Nothing forces "
            "a cost: this victim misreads hardly a sign.",
            "That at most one image in a thousand can open a backdoor": "The share counts images "
            "of your test set's kind. Images with a trigger are of another kind.",
            "That one is unlikely, and with more test images you could be sure": "More images "
            "of the same kind sharpen the same number. None of them holds the trigger.",
        },
    ),
    Question(
        "With the sticker a network reads every sign as `30`, and so it does without. Its ASR "
        "is 100%. Is that a successful backdoor attack?",
        "No: its accuracy is useless, so nobody would accept it",
        "The attacker wants both rules at once, so accuracy is part of what counts as success.",
        {
            "Yes, since every triggered sign is read as the target": "So is every other sign. "
            "The trigger decides nothing here.",
            "Yes, but only for the signs that are no `30`": "The ASR asks only those anyway. "
            "What is missing is the first rule.",
            "It depends on the benign twin's ASR": "The twin tells what the recipe does without "
            "poison; this network is broken whatever the twin does.",
        },
    ),
    Question(
        "The exchanged checkerboard opens the door as well, the white square does not. What "
        "did the network learn?",
        "Something coarser that both boards share",
        "Nobody taught it nine exact pixels. It kept a feature that was enough for its data; "
        "which one, only a look inside can tell.",
        {
            "The nine pixels, exactly as they were planted": "Then the exchanged board, which "
            "differs in all nine, would do nothing.",
            "That something is in that corner": "The white square is in the same corner and "
            "does nothing, and the board works far away from it.",
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
            "They should have looked at the robust accuracy": "It is measured on triggered "
            "images and needs the trigger just as much.",
        },
    ),
)
