"""The quiz of lesson 08b."""

from bdcourse.teach.quiz import Question

QUESTIONS = (
    Question(
        "Why does nobody write down the Hessian of a network, and what is used instead?",
        "It has a row and a column for each weight; its product with a vector costs two passes.",
        "The product is the gradient of one number, g times v. Trace and top eigenvalue need "
        "nothing but such products.",
        {
            "It is not symmetric, so its eigenvalues mean nothing; the Fisher is used.": "Second "
            "derivatives do not care about their order, so the Hessian is symmetric. Its size is "
            "the trouble.",
            "It is zero at a minimum; the gradient is used.": "At a minimum the gradient is zero. "
            "The curvature is what is left to look at.",
            "Its entries cannot be computed; they are estimated from random steps.": "Each entry "
            "can be computed. There are too many of them to keep.",
        },
    ),
    Question(
        "In Hutchinson's estimate you replace random signs by normal numbers. What changes?",
        "The mean stays the trace, and single draws scatter more.",
        "Both have mean 0 and variance 1, which is all that the mean needs. With signs every "
        "squared entry is exactly 1, so the diagonal adds no noise.",
        {
            "The estimate becomes biased.": "Unit variance and independence are enough for the "
            "mean, and normal numbers have both.",
            "Nothing: the variance of an entry is the same.": "The same for an entry, but not for "
            "its square, and it is squares that the diagonal multiplies.",
            "Single draws scatter less, since normal numbers are smooth.": "The square of a "
            "normal number is often far from 1. That scatter goes straight into the estimate.",
        },
    ),
    Question(
        "A script measures the top eigenvalue in train mode, in batches of fifty. What is wrong?",
        "BatchNorm makes the loss of an image depend on its neighbors.",
        "In train mode each batch is normalized by itself. Other batches, another loss, another "
        "Hessian; and the running statistics move while you look.",
        {
            "Dropout and BatchNorm have no second derivatives.": "They do have them. It is just "
            "another function than the one that is deployed.",
            "Fifty images are too few for an eigenvalue.": "Few images make a noisy answer. The "
            "mode makes it the answer to another question.",
            "Nothing, if the batches are shuffled.": "Shuffling changes the neighbors, and with "
            "them the function. It makes the trouble random.",
        },
    ),
    Question(
        "A victim has three times the top eigenvalue of its twin on 200 images. What do you do "
        "before you believe that it is the sharper one?",
        "Measure on other sets, and measure a second benign network.",
        "Other sets show what the choice of images does: on this page one dark sign turned the "
        "order round. A second benign network shows what the chance of a training does.",
        {
            "Run power iteration for more steps.": "That removes what the method leaves over. "
            "The images would still be the same.",
            "Repeat it with another random start.": "Nearly every start leads to the same "
            "eigenvalue. The chance that matters lies in the images and in the training.",
            "Take the trace: it does not depend on the images.": "It varies less, as it adds up "
            "many directions. But it is a mean over the same images.",
        },
    ),
    Question(
        "You multiply a convolution by ten, and BatchNorm's statistics follow. Its part of the "
        "trace is now a hundredth. What has become better?",
        "Nothing: the network computes what it did.",
        "The weights are ten times as long, so a step of the same length is a tenth as much of "
        "them. The ruler changed, and the function did not.",
        {
            "The network generalizes better, as its minimum is flatter.": "It gives the same "
            "answers to every image, so it generalizes exactly as before.",
            "The backdoor is weaker, since the weights matter less.": "Triggered images get the "
            "same answers, too.",
            "The loss on clean images is a hundredth.": "The loss is a function of the outputs, "
            "and these stayed.",
        },
    ),
)
