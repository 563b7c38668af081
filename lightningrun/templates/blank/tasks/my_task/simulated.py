"""Stand-ins for a student and a coach, so that the recipe runs without a key. They read messages, as models do.

The student knows what tickets are about but chats around the label unless its prompt forbids it. The coach reads
feedback and adds a rule, not always a useful one. Both draw their chance from the request's `seed`.
"""

import random
import re

HINTS = {
    "billing": ("invoice", "charge", "refund", "price", "pay", "card", "bill", "receipt"),
    "technical": ("crash", "error", "slow", "bug", "load", "freez", "broken", "export"),
    "account": ("password", "log in", "login", "e-mail", "username", "profile", "delete my", "two-factor"),
}
STRICT = re.compile(r"\b(only the label|one word|nothing else|the label alone)\b", re.IGNORECASE)
CHATTER = ("This ticket is about {}.", "I would say: {}", "{} (I am fairly sure)")
RULES = (
    "Answer with the label alone, in lower case: one word and nothing else.",
    "Be polite, and think about what the customer feels.",
    "Reply with only the label, without a sentence around it.",
)


def student(request: dict) -> str:
    system, ticket = request["messages"][0]["content"], request["messages"][-1]["content"]
    chance = random.Random(f"{request.get('seed')} {ticket}")
    label = next((name for name, words in HINTS.items() if any(w in ticket.lower() for w in words)), "other")
    if STRICT.search(system) or chance.random() < 0.3:
        return label
    return chance.choice(CHATTER).format(label)


def coach(request: dict) -> str:
    asked = request["messages"][-1]["content"]
    current = re.search(r"<current_prompt[^>]*>\n(.*?)\n</current_prompt>", asked, re.DOTALL)
    prompt = current.group(1).strip() if current else ""
    rule = random.Random(f"{request.get('seed')} {asked}").choice(RULES)
    wrong = "the label is buried in a sentence" if "must stand alone" in asked else "some labels are wrong"
    return f"Looking at the failures, {wrong}.\n\n```\n{prompt}\n{rule}\n```"
