"""The quiz of lesson 05."""

from bdcourse.teach.quiz import Question

QUESTIONS = (
    Question(
        "All kernels of one layer become twice as large, and the running variances behind them "
        "follow. What does CLP switch off now?",
        "The same channels as before.",
        "The kernel doubles and so does the deviation that BatchNorm divides by, so every score "
        "stays (up to the tiny eps). Even without BatchNorm nothing would change, since mean and "
        "deviation scale with the scores.",
        {
            "More channels, since all of them stretch twice as far.": "The threshold is made of "
            "the same scores, and BatchNorm has taken the factor back already.",
            "Fewer channels, since the deviation has doubled.": "The distances to the mean would "
            "have doubled as well, so that each z-score stays.",
            "None, since BatchNorm removes every scale.": "It removes the scale that all share "
            "with their variance. The scores still differ, and the outliers are still there.",
        },
    ),
    Question(
        "An attacker trains a backdoor that uses a fifth of a layer's channels, all equally "
        "sensitive. What does CLP do at u = 3?",
        "It leaves them all, because they lift the bar.",
        "Equal outliers lift mean and deviation together. Beyond one channel in ten, none of "
        "them lies three deviations above the mean any more.",
        {
            "It removes all of them, for each is far above the rest.": "Far above the rest is not "
            "enough. The bar is the mean plus three deviations, and they raise both.",
            "It removes the three most sensitive ones.": "No number of channels is fixed in "
            "advance, and equal channels pass the bar together or not at all.",
            "It removes the healthy ones, now a minority of low scores.": "Low scores are never "
            "touched; the rule looks upward only.",
        },
    ),
    Question(
        "CLP finds channels above its threshold in a network of unknown origin. What do you know?",
        "That the layer has outliers, as healthy layers do.",
        "The benign twin has sensitive channels too, and it lost even more of them than the "
        "victim. The score is a reason to cut only if you have decided to cut anyway.",
        {
            "That the network has a backdoor in these channels.": "The benign twin would be "
            "accused by the same evidence.",
            "That these channels are safe to remove.": "That is a hope. It held for the victim and "
            "the twin at 2.5. On the victim it cost accuracy one notch below.",
            "That the network has no backdoor elsewhere.": "Blended's backdoor survived "
            "CLP's cut, and even the cut that knew the trigger. Not all of it stands out.",
        },
    ),
    Question(
        "In most layers of the benign twin, too, channels with a high score react strongly to the "
        "trigger. What does the agreement of score and TAC tell you?",
        "Nothing about a backdoor, since it needs none.",
        "The twin was never trained on the trigger, and for BadNets' trigger it agrees in twice "
        "as many layers as the victim. What you find without a backdoor as well is no sign of one.",
        {
            "That the twin has learned the backdoor as well.": "It was trained on clean images "
            "only. A strong reaction inside is not yet a wrong answer at the exit.",
            "That a high score marks a channel of the backdoor.": "The twin has no such channel, "
            "and its scores agree with TAC all the same.",
            "That cutting the highest scores will end the attack.": "In Blended they agree in "
            "most layers, and the cut did not repair it. Only the cut itself can tell.",
        },
    ),
    Question(
        "You have sixty clean images and lower u until their accuracy falls. What may you promise?",
        "That clean signs are read about as well as before.",
        "Clean images tell how far you can go, and nothing else. Whether the backdoor "
        "was on the way, only the trigger could say.",
        {
            "That the attack success is below ten percent.": "On BadNets it was, on Blended it was "
            "not, and the sixty images looked just as content in both.",
            "That no smaller u would have been better.": "Another sixty images may allow one notch "
            "more. The rule stops where these images feel it.",
            "That the repair used no data at all.": "It used sixty labeled images. CLP is "
            "data-free only for those who know u beforehand.",
        },
    ),
)
