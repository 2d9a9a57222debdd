"""An agent of the openai package whose turns a reward model chooses: only its base URL changes.

agentrm serve --reward-model runs/quickstart --policy http://127.0.0.1:8080
python docs/examples/served_agent.py http://127.0.0.1:8000/v1
"""

import random
import re
import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1], api_key="none")
number = random.Random(0).randint(1, 9)
task = "Reply with Action: guess <number>. Guess a number from 1 to 9."
messages = [{"role": "user", "content": task}]
solved = False
for _ in range(6):
    answer = client.chat.completions.create(
        model="any", messages=messages, max_tokens=32, extra_body={"n": 4, "method": "best_of_n"}
    )
    turn = answer.choices[0].message.content
    scores = sorted(candidate["score"] for candidate in answer.candidates)
    print(f"{turn!r}: {scores[-1]:.3f}, the best of {len(scores)} candidates")
    messages.append({"role": "assistant", "content": turn})
    found = re.search(r"guess (\d+)", turn)
    solved = found is not None and int(found[1]) == number
    if solved:
        break
    messages.append({"role": "user", "content": "Wrong, try another one."})
print("solved" if solved else "not solved")
