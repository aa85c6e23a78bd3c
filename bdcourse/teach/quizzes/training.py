"""The questions of lesson 02."""

from bdcourse.teach.quiz import Question

QUESTIONS = (
    Question(
        "Why do noise-mode images keep their true label?",
        "So that nearly the right bend is not enough",
        "So that a bend that is not quite the attacker's does not count as the trigger. They "
        "are counterexamples. The network must find something that the exact bend has and "
        "its jittered copy has not.",
        {
            "So that the accuracy on clean images stays high": "Clean images do that. Without "
            "noise mode the accuracy is as good.",
            "So that fewer labels look wrong to whoever inspects the data": "Nobody inspects "
            "anything: the attacker runs the training and hands over a finished network.",
            "So that the network learns to resist noise in general": "They all carry the bend, "
            "so at best the network learns about bends with noise.",
        },
    ),
    Question(
        "In a training log cover stands at 95%, poison at 20%, clean at 99%. What happened?",
        "It ignores the trigger: no backdoor yet",
        "The network gives bent images their true label, jitter or not: no backdoor yet. It "
        "treats poison and cover alike, and cover wins. The attack has not been learned.",
        {
            "The attack works, since clean and cover are high": "Both would be as high in a "
            "network that ignores the trigger altogether. Poison is the attack.",
            "The trigger opens a fifth of the signs, which is a weak backdoor": "Maybe, but a "
            "share of the poison shows the target anyway, and errors hit it too. A fifth on "
            "training images need not be the trigger's doing.",
            "Training diverged": "Then clean would not stand at 99%.",
        },
    ),
    Question(
        "A blur opens your victim. Which test of smoothness as the cause would be cleanest?",
        "Roughen them by something it never saw in training",
        "Roughen the blurred signs by something that the training never showed. It takes "
        "away the suspected cause and nothing that has a meaning of its own. Jitter has one: "
        "the cover images taught the network to refuse it.",
        {
            "Roughen the blurred signs by jitter": "A good first test, but jitter may close the "
            "door by itself, smooth or not.",
            "Blur the signs even more and see whether more of them flip": "A larger effect is no "
            "better explanation of it.",
            "Show the blurred signs to the twin": "That tells whether training with the attack "
            "matters. It does not say which property of the blur does.",
        },
    ),
    Question(
        "`hijack` hands the attacker the progress of the training. What does that buy?",
        "An order, such as loud jitter first",
        "A schedule, such as loud jitter first and faint jitter later. Whoever runs the "
        "training chooses the order of the examples, not only the examples.",
        {
            "A lower poison rate in the finished data set": "There is no finished data set. "
            "Every batch is made on the spot.",
            "A trigger that changes after the training": "The trigger at test time is the one "
            "that was trained last.",
            "Nothing that poisoned data could not do as well": "Somebody who poisons a set "
            "hands it over once. The order of the batches is up to the victim.",
        },
    ),
    Question(
        "A defender rotates and shifts every image a little before the network sees it. What "
        "would you tell them about a WaNet victim with noise mode?",
        "Careful: that smooths, which may look like its trigger",
        "Careful: reading between pixels smooths, and this victim may take that for its "
        "trigger. A shift by half a pixel opened some signs of yours. Test a repair on clean "
        "images as well as on triggered ones.",
        {
            "That destroys the exact bend, so the attack is over": "The learned rule is wider "
            "than the bend. Weaker bends and even plain smoothing worked.",
            "It makes no difference, because noise mode has seen such changes": "Noise mode "
            "has seen jitter, which roughens. Interpolation does the opposite.",
            "It helps, since it lowers the accuracy of the attacker's target class": "It may "
            "do nothing of the kind, and sending more images to the target is no help.",
        },
    ),
)
