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
        "In a training log cover stands at 95%, poison at 9%, clean at 99%. What happened?",
        "It ignores the trigger: no backdoor yet",
        "The network gives bent images their true label, jitter or not: no backdoor yet. It "
        "treats poison and cover alike, and cover wins. The attack has not been learned.",
        {
            "The attack works, since clean and cover are high": "Both would be as high in a "
            "network that ignores the trigger altogether. Poison is the attack.",
            "The trigger opens nearly a tenth of the signs, a weak backdoor": "One class in "
            "twelve is the target. That many poisoned images are right without any trigger.",
            "Training diverged": "Then clean would not stand at 99%.",
        },
    ),
    Question(
        "A blur opens your victim. You suspect that it answers to smoothness. Which test "
        "tells you most?",
        "Put grain on the blurred signs",
        "Grain removes the smoothness and moves no pixel, so it is not the jitter that the "
        "network was taught to refuse. It also adds noise, hence the clouds as a control.",
        {
            "Put jitter on the blurred signs": "The covers taught the network to refuse jitter. "
            "It may close the door by itself, smooth or not: your blur with jitter was still "
            "smoother than the bend.",
            "Blur the signs even more and see whether more of them flip": "More blur changes "
            "more than smoothness: letters vanish as well. Take the suspect away instead.",
            "Show the blurred signs to the twin": "That tells whether training with the attack "
            "matters. It does not say which property of the blur does.",
        },
    ),
    Question(
        "`hijack` hands the attacker the progress of the training. What does that buy?",
        "An order, such as loud jitter first",
        "A schedule, such as loud jitter first and faint jitter later. Whoever runs the "
        "training chooses the order of the examples. With the same covers in random order, "
        "the stored runs of your loop got less far.",
        {
            "A lower poison rate in the finished data set": "There is no finished data set. "
            "Every batch is made on the spot.",
            "A trigger that changes after the training": "The trigger at test time is the one "
            "that was trained last.",
            "Nothing that poisoned data could not do as well": "Loud covers alone could be "
            "slipped into a data set. Their order is up to whoever trains on it.",
        },
    ),
    Question(
        "A defender rotates and shifts every image a little before the network sees it. What "
        "would you tell them about a WaNet victim with noise mode?",
        "Careful: that smooths, which may look like its trigger",
        "Careful: a turn reads between pixels, which smooths, and this victim may take that "
        "for its trigger. A shift by half a pixel opened some signs of yours. Test a repair on "
        "clean images as well as on triggered ones.",
        {
            "That destroys the exact bend, so the attack is over": "The learned rule is wider "
            "than the bend. Weaker bends and even plain smoothing worked.",
            "It makes no difference, because noise mode has seen such changes": "It has seen "
            "bends with jitter. A smooth turn without jitter looks more like the poison.",
            "It helps, since it lowers the accuracy of the attacker's target class": "It may "
            "do nothing of the kind, and sending more images to the target is no help.",
        },
    ),
)
