"""The quiz of lesson 06."""

from bdcourse.teach.quiz import Question

QUESTIONS = (
    Question(
        "Why does the push not begin at the clean image itself?",
        "There the objective is flat.",
        "At the clean image the map has not moved, so J is zero, its smallest value, and the "
        "gradient is exactly zero. A sign of zero moves nothing.",
        {
            "There the step would leave the range of pixels.": "Clipping takes care of that "
            "wherever the step begins.",
            "The defender must hide the clean images.": "Nothing is hidden here; the defender "
            "owns network and images.",
            "A random start makes the push weaker and so fairer.": "Its size is a setting like "
            "any other. What matters is that the start is not the minimum of J.",
        },
    ),
    Question(
        "In a layer all maps score the same accuracy. What decides which one is pruned?",
        "The tie-break alone.",
        "With few images and a small step nearly all accuracies agree, so whatever breaks ties "
        "decides: here the cross-entropy, in the released code the position of the map.",
        {
            "None is pruned, since none is suspicious.": "FMP takes its share of every layer, "
            "suspicious or not. That is a choice of the method, and it can be questioned.",
            "The map that reacts most to the trigger.": "The defender has no trigger; nothing in "
            "the score knows it.",
            "The fine-tuning that follows.": "It begins when the maps are gone already.",
        },
    ),
    Question(
        "Pruned, a network has an attack success of zero. New BatchNorm statistics, and it is "
        "back at one half. Which belief about the pruned maps is now refuted?",
        "That no other map carries the trigger.",
        "No weight changed between the two measurements, so what obeys the trigger was there "
        "all the time in the maps that stayed, too faint for the old statistics.",
        {
            "That they react to the trigger.": "They may react as strongly as you like; others "
            "carry it as well.",
            "That clean images make use of some.": "They do: with the cut the “80” fell. But "
            "attack success says nothing about that, so it cannot refute it.",
            "That they were chosen better than at random.": "They were: as many random maps left "
            "the attack untouched. Better than chance is not the same as complete.",
        },
    ),
    Question(
        "Attack success is zero and robust accuracy is at 80 percent. Which number do you ask "
        "for before you call it a repair?",
        "The accuracy on the target class.",
        "A network that never says the target's name cannot be attacked toward it. Robust "
        "accuracy leaves out images of the target class, so it does not see that the class has "
        "gone silent.",
        {
            "The attack success on the training set.": "It would be zero as well, for the same "
            "reason.",
            "The number of pruned maps.": "Few maps can cost a class, and many can cost nothing.",
            "The loss on the triggered images.": "It tells how sure the network is, not whether "
            "a class has gone silent.",
        },
    ),
    Question(
        "A paper prunes by a new score, fine-tunes, and reports a low attack success. Which "
        "control tells you that the score did it?",
        "Random maps, same number, same tuning.",
        "It differs from the method in nothing but the choice of maps, and it has to be drawn "
        "more than once. Tuning with no pruning tells what the tuning does, and a second "
        "draw tells what luck does.",
        {
            "The undefended network.": "It differs in everything at once: choice, pruning and "
            "tuning.",
            "The same method on a clean network.": "Worth doing, but it tells the price of the "
            "method, not what its choice adds.",
            "A rival defense with its own tuning.": "Two recipes that differ in several things "
            "do not tell which of them mattered.",
        },
    ),
)
