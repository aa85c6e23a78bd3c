"""The questions of lesson 03."""

from bdcourse.teach.quiz import Question

QUESTIONS = (
    Question(
        "After a repair the attack success rate is close to zero. What do you ask next?",
        "Accuracy, and how many labels came back",
        "What the accuracy is, and how many triggered images get their true label back. A "
        "network that answers `stop` to everything also has an ASR of zero. Only accuracy "
        "and RA tell repair from wreckage: zero is not repair.",
        {
            "Nothing: the attack is gone": "So is the network, perhaps. Broken networks reach "
            "zero without any repair, as the figure of wrecks shows.",
            "Whether the ASR was measured on enough images": "A fair question about precision, "
            "and it would not tell a repaired network from a broken one.",
            "Whether the benign twin has the same ASR": "The twin tells what zero looks like. "
            "It says nothing about the cost of this repair.",
        },
    ),
    Question(
        "A channel reacts more to the trigger than any other channel of its layer. What follows?",
        "Nothing about cause yet",
        "Nothing about cause yet: switch it off, beside random channels, and measure. TAC "
        "observes. The whole last BatchNorm can go and nothing happens, so being loud is "
        "not being needed.",
        {
            "It carries the backdoor": "It may only repeat what was decided before it. "
            "Correlation is not cause.",
            "The network is a victim": "Some channel is always the loudest, in an honest "
            "network as well. Compare with the twin.",
            "It should be pruned by the defender": "The defender has no trigger, so they "
            "cannot even compute TAC. And a loud channel need not be a cause.",
        },
    ),
    Question(
        "Why must the control switch off random channels in the same layer, several times?",
        "To see what mere loss of channels does",
        "To see what losing that many channels does by itself, and how much that varies. One "
        "draw may hit the decisive channel or miss all of them. One draw is no result.",
        {
            "To find better channels than TAC does": "Random search may do that, but the "
            "control answers another question: is the ranking better than luck?",
            "To make the comparison fair to small layers": "Layer size matters for k. The "
            "reason for drawing at random, and often, is chance.",
            "To average out noise of the test images": "All cuts are measured on the same "
            "images. What varies is the choice of channels.",
        },
    ),
    Question(
        "You set a channel's BatchNorm weight to zero and leave its bias. What is wrong?",
        "It still sends a constant to its readers",
        "The channel still sends a constant, the ReLU of its bias, to all that read it. It "
        "no longer depends on the image, but it is not off. Weight and bias go together.",
        {
            "Nothing: zero times anything is zero": "The bias is added after the product, and "
            "it survives the ReLU wherever it is positive.",
            "The running statistics must be zero as well": "They only matter inside the "
            "product with the weight, and that product is zero.",
            "The convolution before it must be removed too": "What it computes is multiplied "
            "by zero. Removing it would save time and change no answer.",
        },
    ),
    Question(
        "Cutting two channels repairs `badnets`, and no such cut repairs `blended`. "
        "Which conclusion is safe?",
        "In this layer `badnets` has a narrow passage",
        "In this one layer `badnets` has a narrow passage; for `blended` we found none. That "
        "is what was measured: these networks, one layer at a time, ranked by TAC.",
        {
            "Blended backdoors cannot be pruned away": "Cuts across layers, or with another "
            "ranking, were not tried here. Absence of a find is no proof.",
            "The backdoor of `badnets` consists of two channels": "One of the two is needed, "
            "and handed over they are enough. Still, what turns their signal into the attacker's "
            "label lies in the layers behind them.",
            "A defender could now repair `badnets`": "The channels were found with the "
            "trigger, which no defender has. This is an oracle.",
        },
    ),
)
