"""The quiz of lesson 04."""

from bdcourse.teach.quiz import Question

QUESTIONS = (
    Question(
        "You rank channels by how much a small stamp raises the sum of their maps. Why does the "
        "dilution of exercise 1 not spoil this ranking?",
        "The same background stands in both maps and cancels.",
        "You subtract the sum of an image from the sum of the same image with a stamp. What the "
        "stamp leaves alone is in both sums, and only the spike is left. Dilution is a matter of "
        "the ratio, or of telling one image from another.",
        {
            "A mean over many images removes the background.": "A mean of sums is as full of "
            "background as one sum. It is the subtraction that takes it away.",
            "Maps behind a ReLU have no background.": "They have hills wherever the sign has "
            "edges; look at the maps of lesson 03.",
            "A search finds stamps that cover most of the map.": "The smallest mask wins, and a "
            "few pixels cover little of it.",
        },
    ),
    Question(
        "Why does the search raise lambda once a mask has worked for some looks in a row?",
        "Mask sizes can be compared only when each is as small as it can be.",
        "A mask that covers the image turns every sign into every label, so that some mask works "
        "says nothing. Pixels get dearer until the stamp almost fails, and what is left is the "
        "price of that label.",
        {
            "To make Adam converge faster.": "The step length does that. Lambda moves the goal "
            "itself, from any stamp that works to the smallest.",
            "To punish labels that are easy to reach.": "Every label has its own lambda, and it "
            "only trades the label's own success for its own pixels.",
            "To keep the mask between zero and one.": "The tanh does that, whatever lambda is.",
        },
    ),
    Question(
        "In a network from an unknown source one label's mask is far smaller than all others. "
        "What do you know?",
        "That it deserves a closer look.",
        "A few pixels lead to this label, which is a reason to look closer. A short cut "
        "exists, planted or not. Similar signs, a bright border or a poor search can make "
        "small masks as well; a benign twin, where you have one, tells what is usual.",
        {
            "That the network has a backdoor with this very trigger.": "The search finds a stamp "
            "that works, and many do. That it resembles the planted one is luck of this victim.",
            "Nothing, since every label has some mask.": "Every label has one, but the price "
            "differs, and a price far below all others is information.",
            "That the other labels are safe.": "An attacker may own several labels, or a trigger "
            "that no mask and pattern can express.",
        },
    ),
    Question(
        "After pruning, your own guess no longer works on a single image. Which sentence may "
        "stand in your report?",
        "The network is immune to this guess.",
        "The network is immune to this guess; what the attacker's trigger does is not known. "
        "You closed the hole that you found. Whether it was the attacker's hole cannot be "
        "measured with the guess that chose the channels.",
        {
            "The backdoor is removed.": "On the way to the repair the guess for BadNets was dead, "
            "and most signs with the attacker's sticker still obeyed.",
            "The attack success rate is zero.": "The attack success rate is measured with the "
            "attacker's trigger, which you have never seen.",
            "The backdoor is removed if accuracy is still high.": "Accuracy on clean images "
            "measures the first rule of the network only; the second needs its trigger.",
        },
    ),
    Question(
        "A colleague picks the number of pruned channels where the attack success on the test "
        "set is lowest. What is wrong with the result?",
        "It is an oracle's threshold.",
        "The threshold was chosen with the attacker's trigger, so it is an oracle's result. "
        "Nobody who repairs a network has this trigger. Accuracy on held-out clean images is "
        "something that a defender can ask, and the test set stays for the report.",
        {
            "Nothing, if the same number is used for all victims.": "One number for all is better, "
            "yet it still was chosen by looking at what the report then shows.",
            "Nothing, since pruning itself never saw the trigger.": "The ranking did not see it, "
            "but the choice of the cut did, and the cut decides.",
            "Too few channels will be pruned.": "Too few or too many: the direction is not the "
            "point, it is who was asked.",
        },
    ),
)
