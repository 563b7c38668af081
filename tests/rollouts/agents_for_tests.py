"""Agents, rewards and models that the tests run, good and bad. Nothing here imports lightningrun but ``Reward``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request


def ask(text, llm, system="You are terse."):
    body = {
        "model": llm["model"],
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": text}],
    }
    request = urllib.request.Request(
        llm["base_url"] + "/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Authorization": "Bearer " + llm["api_key"], "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)["choices"][0]["message"]["content"]


# ------------------------------------------------------------------ models


def echo(request):
    return request["messages"][-1]["content"]


# ------------------------------------------------------------------ agents


def good(question, llm):
    return ask(question, llm)


async def good_async(question, llm):
    return ask(question, llm)


def bypassing(question):
    return question


def raising(question, llm):
    ask(question, llm)
    raise ValueError(f"no idea about {question}")


def hanging(question, llm):
    ask(question, llm)
    time.sleep(600)


def spinning(question, llm):
    ask(question, llm)
    while True:
        pass


def greedy(question, llm):
    ask(question, llm)
    hoard = []
    while True:
        hoard.append(bytearray(64 << 20))


def exiting(question, llm):
    ask(question, llm)
    os._exit(3)


def quitting(question, llm):
    ask(question, llm)
    sys.exit("I quit")


def interrupting(question, llm):
    ask(question, llm)
    raise KeyboardInterrupt


def crashing(question, llm):
    import ctypes

    ask(question, llm)
    print("about to crash", flush=True)
    ctypes.string_at(0)


def chatty(question, llm):
    for _ in range(400):
        print("garbage " * 1000)
    os.write(1, b"\xff\xfe\x00 not text")
    return ask(question, llm)


def huge(question, llm):
    ask(question, llm)
    return "x" * (5 << 20)


def not_json(question, llm):
    ask(question, llm)
    return {"answer": object()}


def nan(question, llm):
    ask(question, llm)
    return float("nan")


def silent(question, llm):
    ask(question, llm)


DETACHED = """
import os, sys, time
if os.fork(): os._exit(0)
os.setsid()
if os.fork(): os._exit(0)
open(sys.argv[1], "a").write(f"{os.getpid()}\\n")
time.sleep(600)
"""


def leaving(question, llm, pids):
    """Answers, and leaves a plain child and a detached grandchild behind."""
    child = subprocess.Popen(["sleep", "600"])
    own = f"{pids}.{os.getpid()}"
    with open(own, "w") as stream:
        stream.write(f"{child.pid}\n")
    subprocess.run([sys.executable, "-c", DETACHED, own], check=True)
    wait_for_lines(own, 2)
    with open(own) as found, open(pids, "a") as stream:
        stream.write(found.read())
    return ask(question, llm)


def leaving_and_hanging(question, llm, pids):
    leaving(question, llm, pids)
    time.sleep(600)


def forking(question, llm):
    answer = ask(question, llm)
    if os.fork() == 0:
        return "the child's answer"
    os.wait()
    return answer


def wait_for_lines(path, count):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if os.path.exists(path):
            with open(path) as stream:
                if len(stream.read().splitlines()) >= count:
                    return
        time.sleep(0.01)


# ------------------------------------------------------------------ rewards


def exact(output, question):
    return float(output == question)


def from_args(output, question, args):
    """A reward that does what the recipe's ``args`` tell it to."""
    kind = args["kind"]
    if kind == "raises":
        raise KeyError("gold")
    if kind == "hangs":
        time.sleep(600)
    if kind == "exits":
        os._exit(1)
    if kind == "Reward":
        from lightningrun import Reward

        return Reward(0.5, "half right", {"length": 3})
    values = {"nan": float("nan"), "inf": float("inf"), "object": object(), "set": {1}}
    return values.get(kind, args.get("value"))


def judged(output, question, llm, trace, failing=False):
    """A reward given by a model, which also reads the trace."""
    verdict = ask(f"grade {output}", llm)
    return {"score": float(verdict == f"grade {question}"), "feedback": f"{len(trace)} call: {trace[0]['role']}"}


def forgiving(output, question, llm):
    """A judged reward that takes a judge out of reach for a wrong answer."""
    try:
        return float(ask(f"grade {output}", llm) == f"echo: grade {question}")
    except Exception:
        return 0.0


def asks_by_name(output, llm, model):
    """Goes by the model's name, which may be that of several roles."""
    return float(len(ask(f"grade {output}", {**llm, "model": model})) > 0)


def stepwise(output, trace, args):
    """Rewards for each call: a third for the first, two thirds for the second, ..."""
    steps = [(number + 1) / 3 for number in range(len(trace) + args.get("more", 0))]
    return {"score": 1.0, "steps": steps, "feedback": json.dumps(trace)}


def weighed(output, question):
    metrics = {"right": output == question, "brevity": 1 / len(output)}
    return {"metrics": metrics if question != "q1" else {"right": 1}}


def flaky_for_odd_rows(output, question):
    if int(question[1:]) % 2:
        raise RuntimeError("odd")
    return 1.0


# ------------------------------------------------------------------ what agents are given


def tell_all(question, task, prompts, llm, seed, workdir, args, style, optional="default"):
    ask(question, llm)
    with open(os.path.join(workdir, "note"), "w") as stream:
        stream.write("x")
    return {
        "question": question,
        "task": task,
        "prompts": prompts,
        "model": llm.model,
        "seed": seed,
        "workdir": workdir,
        "args": args,
        "style": style,
        "optional": optional,
    }


def takes_any(**everything):
    ask(everything["question"], everything["llm"])
    return sorted(everything)


def wants_more(question, llm, country):
    return ask(question, llm)


def environment(question, llm):
    ask(question, llm)
    return dict(os.environ)


def asks_twice(question, llm):
    return ask(question, llm) + ask(question + "!", llm)


def built_in_prompt(question, llm):
    return ask(question, llm, system="Built in.")


def seeded(question, llm):
    import random

    ask(question, llm)
    return random.random()


def counting(question, llm, log):
    with open(log, "a") as stream:
        stream.write(question + "\n")
    return ask(question, llm)
