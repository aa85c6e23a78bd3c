"""The quiz of lesson 10."""

from bdcourse.teach.quiz import Question

QUESTIONS = (
    Question(
        "A network was trained on a trigger that rises from the lower to the upper edge. It obeys "
        "that, and ignores the same trigger at rest at the bottom. What do you show it before you "
        "write that it has learned the rising?",
        "The same places in another order.",
        "A rise is places and their order. Whoever keeps the places and takes the order away "
        "learns which of the two the network needs.",
        {
            "The trigger at rest at the top.": "Worth a try, but it lacks the order and most "
            "places at once. If it is ignored, you still do not know why.",
            "The same two patches on more clips.": "They sharpen a rate that nobody doubts. The "
            "doubt is about what it means.",
            "A benign network.": "Not enough. Run it too: it shows what the patch does without a "
            "backdoor. But it cannot say what the victim has learned.",
        },
    ),
    Question(
        "Lookalikes with true labels made our network wait for the walk. Why did training without "
        "them not do so?",
        "No training clip punished the shortcut.",
        "Patches here and there gave the right answer on every clip of the set. A finer rule "
        "would have lowered the loss no further.",
        {
            "3D convolutions cannot see such a walk at all.": "The same network, trained on "
            "another set, answers to the walk alone.",
            "Too few clips were poisoned.": "As many as with lookalikes. More of them would agree "
            "with the shortcut just as well.",
            "It was trained too briefly.": "The loss was down, and every clean clip was named "
            "correctly. What is there to learn from, when nothing is wrong?",
        },
    ),
    Question(
        "A stamped frame reaches every output of the last layer. What follows for the attacker?",
        "Little: the answer may stay all the same.",
        "Reach bounds what a frame can touch, never how much it moves. Here one frame reached "
        "everything and turned hardly an answer.",
        {
            "One frame will do.": "It could, in a network that was trained that way. Ours were "
            "trained with twelve.",
            "Frames in the middle are the best to stamp.": "No. All but the last three frames "
            "reach every output, the first one too. Reach does not single out the middle.",
            "The attack cannot fail.": "Nothing in a receptive field says what the weights in it "
            "are.",
        },
    ),
    Question(
        "The shuffle test reports nothing on a network that you were sent. What may you say?",
        "No trigger that outlives shuffling was shown.",
        "The test sees clips, not networks: a victim that meets no trigger has nothing to show. "
        "And a trigger that needs its order is torn apart together with the action.",
        {
            "The network has no backdoor.": "`strict` has one, and its "
            "triggered clips look like clean ones.",
            "It has no backdoor for video.": "It says nothing about triggers that live in the "
            "order of the frames, and those only video has.",
            "The test needs more shuffles.": "More shuffles sharpen each share. The clips that it "
            "misses have honest shares.",
        },
    ),
    Question(
        "Somebody puts the shuffle test before a network that tells running from swimming by the "
        "water. What will it report?",
        "Nearly every clip, honest ones too.",
        "The answer does not need the order, so it outlives every shuffle. The test stands on an "
        "assumption about the task.",
        {
            "Only triggered clips.": "It cannot tell a patch from water: both stay where the "
            "order goes.",
            "Nothing, as the network has no backdoor.": "Honest is not what it measures. It "
            "measures whether the order matters.",
            "Only swimming.": "The answer “running” comes from a picture as well, and stays too.",
        },
    ),
)
