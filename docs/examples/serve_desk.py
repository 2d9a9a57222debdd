"""Serves the reward model over HTTP and asks it which of three ends of a case is the right one.

python docs/examples/serve_desk.py MODEL
"""

import json
import subprocess
import sys
import urllib.request

from desk import DECISIONS, PROMPT, Desk, desk_tasks

import agentrm_jax as arm

[task] = desk_tasks(1, seed=2)
conversations = []
for decision in DECISIONS:
    desk = Desk()
    state = arm.Trajectory(task=task, first_observation=desk.reset(task))
    for action in (f"look up {task.spec['order']}", decision):
        step = arm.Step(reply=f"Action: {action}", action=action, transition=desk.step(action))
        state = state.extended(step)
    conversations.append(state.messages(PROMPT))
print(conversations[0][-5]["content"], conversations[0][-3]["content"])

command = [sys.executable, "-m", "agentrm_jax.cli.main", "serve", "--port=0"]
server = subprocess.Popen(
    [*command, f"--reward-model={sys.argv[1]}"], stdout=subprocess.PIPE, text=True
)
try:
    url = server.stdout.readline().split()[-1]  # listening on http://127.0.0.1:PORT
    request = urllib.request.Request(
        f"{url}/classify",
        json.dumps({"input": conversations}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        scores = [item["probs"][-1] for item in json.load(answer)["data"]]
    for score, decision in sorted(zip(scores, DECISIONS, strict=True), reverse=True):
        print(f"{score:.3f} {decision}")
finally:
    server.terminate()
