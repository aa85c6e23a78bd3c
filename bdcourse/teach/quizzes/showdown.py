"""The quiz of lesson 09."""

from bdcourse.teach.quiz import Question

QUESTIONS = (
    Question(
        "A paper reports a mean ASR of 0.4% and a mean accuracy of 91%, down from 93%. What do "
        "you ask for first?",
        "RA: whether the true labels are back.",
        "Both numbers also fit a network in which triggered images fall into some other wrong "
        "class. Only the accuracy on triggered images tells a repair from a detour.",
        {
            "DER, because it joins the two numbers.": "DER is computed from these same two "
            "numbers, so it cannot know more than they do.",
            "A larger test set, because 0.4% is so small.": "A sharper estimate of the same "
            "quantity answers the same question. It still says nothing about labels.",
            "The ASR of each class, since means hide things.": "A good second question. But a "
            "network can be at zero in every class and still give no label back.",
        },
    ),
    Question(
        "Methods A and B have overlapping intervals, and A is ahead in 97% of the resampled "
        "tables. Can that be?",
        "Yes: both move up and down together from table to table.",
        "The intervals show how far each mean moves. Easy victims lift both at once, so the "
        "difference can be steady while each of them swings.",
        {
            "No: overlapping intervals mean that there is no difference.": "Overlap never proves "
            "that. With the same victims on both sides it is especially misleading.",
            "Yes, but only if the bootstrap drew too few tables.": "More tables would settle both "
            "numbers, and they would settle where they are.",
            "No: with 97% the intervals would have to be apart.": "They are apart only if the "
            "difference is larger than the swing that both share.",
        },
    ),
    Question(
        "A benchmark lets every method lose up to a tenth of the accuracy and keeps the "
        "threshold with the lowest ASR. A method with a knob moves from place 12 to place 3. "
        "What was it, as far as the lesson can tell?",
        "Mostly the allowance: the edge of it is where more pruning ends.",
        "On a knob where less accuracy means less backdoor, the lowest ASR lies at the edge of "
        "the allowance. A blind defender who may go there ends at the same place.",
        {
            "Mostly the look at the ASR, which no defender has.": "It sounds like cheating, and it "
            "is not allowed. But for these knobs it gained next to nothing.",
            "Chance, which the bootstrap would have shown.": "The mean gain was tens of "
            "points, far beyond what a bar of such a table covers.",
            "The method is better than its authors thought.": "It is the same method at a higher "
            "price. Others would move as well if they were allowed to pay it.",
        },
    ),
    Question(
        "Why does the bootstrap interval of a winner on one set say so little about another set?",
        "It redraws the victims in the table, never those outside.",
        "All resampled tables are made of the victims that somebody chose. What they share, from "
        "the kind of image to the training, is in every one of them.",
        {
            "Because four thousand tables are not enough.": "More tables make the ends of the bar "
            "smoother. They do not bring in a single new victim.",
            "Because a 90% interval is wrong in one case of ten.": "That is the price for victims "
            "of the same kind. A new kind is not covered at any percentage.",
            "Because the score differs between the sets.": "DER is the same formula on both. What "
            "differs is what was put into it.",
        },
    ),
    Question(
        "You develop a defense, try twelve variants on five victims, and publish the best one "
        "with its score on these five. Which number would be honest?",
        "Its score on victims that took no part in picking it.",
        "The best of twelve is partly luck on these five. Fresh victims pay out what it is worth, "
        "as the defender of exercise 5 found on photographs.",
        {
            "The mean score of all twelve variants.": "That understates the one you chose, and "
            "says little about it. The fault is in the victims, not in the variants.",
            "The same score with a bootstrap interval.": "The interval redraws the five victims "
            "by which the variant was picked, so it inherits the choice.",
            "The worst score of the five.": "Cautious, and still measured on the victims that "
            "chose. Twelve tries can find a variant whose worst case looks good.",
        },
    ),
)
