"""The quiz of lesson 08."""

from bdcourse.teach.quiz import Question

QUESTIONS = (
    Question(
        "A network is certain of every clean image you own. Sixty draws of labels estimate its "
        "Fisher trace, and fifty-eight agree on a value close to zero. What follows?",
        "Little: the tail may hold nearly all of it.",
        "The estimate is unbiased, but its mean sits in labels that are hardly ever drawn. Draws "
        "that agree may all have missed the same thing, and their spread does not know.",
        {
            "The trace is close to zero.": "That would follow if the draws had a short tail. Here "
            "one rare label can outweigh all the others together.",
            "The estimate is biased; another is needed.": "It is unbiased for every network. A "
            "long tail is another trouble, and more draws cure it only slowly.",
            "The network has no backdoor.": "The trace is measured on clean images. It says "
            "nothing about images with a trigger.",
        },
    ),
    Question(
        "You multiply scale and shift of a BatchNorm by ten and divide the next convolution by "
        "ten. ReLU lies between them. What happens?",
        "The outputs stay, the trace changes.",
        "ReLU passes a positive factor on, so the product is the same function. The derivatives "
        "by the two layers change by ten and by a tenth, and their squares with them.",
        {
            "Both stay as they were.": "The function does. The trace depends on the names that "
            "you give to the weights, and you have renamed them.",
            "The outputs change, the trace stays.": "Ten times as much goes into weights that "
            "are a tenth as large.",
            "Both change: the minimum is another one.": "It is another point among the weights, "
            "but the same function of the image.",
        },
    ),
    Question(
        "Fine-tuning lowers the trace on the images it trains on to a fraction. A colleague "
        "reports a smoother minimum. What do you ask for first?",
        "The trace on images not trained on.",
        "A network that has memorized its few images is flat there and can be sharper everywhere "
        "else, as on this page.",
        {
            "The top eigenvalue of the Hessian.": "Measured on the same images it falls for the "
            "same reason. The images are the trouble, more than the measure.",
            "More steps of fine-tuning.": "They would memorize the same images further.",
            "The attack success rate.": "It is worth knowing, but it does not tell whether the "
            "minimum became smoother.",
        },
    ),
    Question(
        "Random pushes of the same lengths as FIP's leave the backdoor where it is. What does "
        "this control rule out?",
        "That the length of the pushes suffices.",
        "The direction matters. That the direction works *because* it smooths is still only one "
        "reading, and networks that became smoother and kept the attack speak against it.",
        {
            "That smoothing is the cause.": "It says nothing about that: the random pushes made "
            "the network sharper, so two things differ at once.",
            "That fine-tuning on clean images plays a part.": "Both runs fine-tune on the same "
            "images. Nothing about fine-tuning is compared.",
            "That luck plays a part.": "One run of each cannot rule out luck. For this you need "
            "more draws.",
        },
    ),
    Question(
        "A paper repairs a victim with one set of clean images and reports an ASR of zero. The "
        "same code with two other sets leaves everything. What is the honest sentence?",
        "It repaired in one of three draws.",
        "One draw is no result, and neither is the mean of three such numbers: nothing in between "
        "was ever seen. Show all three.",
        {
            "It leaves two thirds of the attack.": "The mean describes none of the three "
            "networks. Each is either repaired or untouched.",
            "It works; the other sets were bad luck.": "Luck decided all three. Whoever repairs "
            "a network gets one set, and does not know which.",
            "It does not work; the first was an error.": "The first run is as real as the others "
            "and can be repeated with its seed.",
        },
    ),
)
