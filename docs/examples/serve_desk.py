"""Serves the reward model over HTTP and asks it which of four decisions is the best.

python docs/examples/serve_desk.py MODEL
"""

import json
import subprocess
import sys
import urllib.request

from desk import DECISIONS, PROMPT, Desk, desk_tasks

import agentrm_jax as arm

serve = [sys.executable, "-m", "agentrm_jax.cli.main", "serve", "--port=0"]
server = subprocess.Popen(
    [*serve, f"--reward-model={sys.argv[1]}"], stdout=subprocess.PIPE, text=True
)
try:
    url = server.stdout.readline().split()[-1]  # listening on http://127.0.0.1:PORT
    [task] = desk_tasks(1, seed=2)
    desk = Desk()
    state = arm.Trajectory(task=task, first_observation=desk.reset(task))
    action = f"look up {task.spec['order']}"
    step = arm.Step(reply=f"Action: {action}", action=action, transition=desk.step(action))
    print(state.first_observation, step.transition.observation)
    replies = [f"Action: {action}" for action in (*DECISIONS, action)]
    body = {"queries": {"messages": state.extended(step).messages(PROMPT)}, "documents": replies}
    request = urllib.request.Request(
        f"{url}/score", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        scores = [item["score"] for item in json.load(answer)["data"]]
    for score, reply in sorted(zip(scores, replies, strict=True), reverse=True):
        print(f"{score:.3f} {reply}")
finally:
    server.terminate()
