"""The reward: a score from 0 to 1, and words that tell the coach what was wrong."""


def right_label(task: dict, output: str) -> dict:
    given, wanted = output.strip().lower(), task["label"]
    if given == wanted:
        return {"score": 1.0, "feedback": "Correct."}
    if wanted in given:
        return {"score": 0.0, "feedback": f"The label {wanted!r} must stand alone; the answer was {output!r}."}
    return {"score": 0.0, "feedback": f"Expected {wanted!r}; the answer was {output!r}."}
