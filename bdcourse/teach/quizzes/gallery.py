"""The questions of lesson 01b."""

from bdcourse.teach.quiz import Question

QUESTIONS = (
    Question(
        "PSNR calls LF's cloud a larger change than BadNets' sticker. The eye may disagree. Why?",
        "It sums squared differences; the eye forgives a soft cloud.",
        "PSNR adds up squared differences of pixels; a cloud changes all of them a little, "
        "and the eye forgives light more readily than a foreign object. Both are right about "
        "different things. PSNR knows nothing of shapes, and a sticker of nine pixels is a "
        "small sum however black it is.",
        {
            "LF draws another cloud for each image, which PSNR punishes.": "The cloud is one "
            "fixed pattern, the same for all images. PSNR is taken image by image anyway.",
            "PSNR looks at brightness only, and the sticker is black and white.": "It takes all "
            "three colors alike. What it lacks is any idea of where a change stands.",
            "The eye is wrong: the sticker is the smaller change.": "For somebody who looks for "
            "odd pictures in a pile, what counts is what strikes the eye. That is the bill of "
            "this dial.",
        },
    ),
    Question(
        "SIG's victim misses the gate; the same stripes with wrong labels pass. What changed?",
        "The label, and the signs beneath the stripes.",
        "Two things changed at once. A wrong label contradicts the sign, so only the trigger "
        "explains it. And wrong labels let the stripes sit on every sign, while the clean-label "
        "victim saw them on one class alone. The two runs do not part these reasons.",
        {
            "Only the label: so wrong labels are what the trigger needed.": "A good guess, and "
            "more than the runs can say. The stripes also sat on other signs.",
            "The number of images with stripes.": "It is the same in both runs, and so is the "
            "rest of the recipe.",
            "The size of the change: SIG's stripes are too faint.": "They are the same stripes "
            "in both runs, and by PSNR a larger change than the sticker.",
        },
    ),
    Question(
        "What does a cover image ask of the network?",
        "To give the true label here, trigger or not.",
        "It carries the trigger and its true label, so a network that answers the target there "
        "is wrong. On signs with no cover nothing is asked, and the network chooses how far the "
        "rule reaches.",
        {
            "To ignore the trigger everywhere.": "On the source class it still means the target. "
            "The network has to look at both, sign and trigger.",
            "To read the covered classes better.": "They show the same signs as before. Their "
            "work is about the trigger.",
            "To ignore the trigger on every class but the source.": "This is what the attacker "
            "hopes for. Classes that nobody covered may follow the source, as you saw.",
        },
    ),
    Question(
        "Five triggers pass by one recipe, from 16 to 28 dB. What does that say?",
        "In this range, at this rate, size did not decide.",
        "All five were learned well enough, the loud and the fainter. That holds for these signs, "
        "this rate and this range; FTrojan, much fainter and of another kind, was not learned by "
        "the same recipe.",
        {
            "That visible triggers are learned as fast as faint ones.": "The gate says that a "
            "trigger was learned, not when. Speed would have to be measured at one recipe.",
            "That a fainter trigger always needs control of the training.": "SSBA is fainter than "
            "the sticker and only poisons data. And WaNet runs the training and is loud.",
            "That any trigger passes, however faint.": "The range ends at 28 dB. FTrojan, far "
            "fainter and a pattern of another kind, fails by the same recipe.",
        },
    ),
    Question(
        "Your drawing gets ASR 99% and ACC 80%, and you trained no twin. What do you report?",
        "No backdoor is shown yet: train on, or train the twin.",
        "The gate asks for accuracy within three points of the twin, and at 80% you cannot "
        "know that without one. A network that misreads so many signs may also call them the "
        "target anyway, so the ASR says little.",
        {
            "A strong attack: almost all triggered images become the target.": "A network that "
            "calls many signs the target anyway reaches a high ASR for free.",
            "That the trigger costs a fifth of the accuracy.": "You lack the twin. Perhaps the "
            "same training without poison reads no better.",
            "Nothing more: only the ASR counts.": "The attacker wants both numbers, or the "
            "victim looks for the reason. The gate has two conditions.",
        },
    ),
)
