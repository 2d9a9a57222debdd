"""The instruction of the shop, and one worked purchase."""

from __future__ import annotations

from agentrm_jax.core.protocols import Prompt

_INSTRUCTION = """\
You are shopping on a website and have to buy what the instruction asks for: a product of the \
right kind with the attributes and options that are named, at a price below the limit. Each turn \
you read the page that you are on; its parts are separated by [SEP]. You can use these actions, \
one in each turn:
search[words]: search for products by words of your own.
click[text]: click a button, a product's number or an option of the page, exactly as it is \
written there.
A list of results shows ten products. A product's page shows its options; each one that is asked \
for has to be clicked. It also leads to the description, the features and the reviews. \
click[Buy Now] on a product's page buys it and ends the task: what you have bought then counts. \
You have 10 turns, and without a purchase you get nothing. An action that is not possible changes \
nothing.
Reply in this format:
Thought: <what you think>
Action: <one action>"""

_ASKED = (
    "Instruction: [SEP] Find me hand made, dishwasher safe mugs with color: sky blue, and size: "
    "12 ounce, and price lower than 30.00 dollars"
)
_ITEM = (
    f"{_ASKED} [SEP] Back to Search [SEP] < Prev [SEP] color [SEP] cream [SEP] sky blue [SEP] size "
    "[SEP] 8 ounce [SEP] 12 ounce [SEP] Tall Stoneware Coffee Mug, Hand Made [SEP] Price: $21.5 "
    "[SEP] Rating: N.A. [SEP] Description [SEP] Features [SEP] Reviews [SEP] Buy Now"
)

PROMPT = Prompt(
    instruction=_INSTRUCTION,
    example=(
        f"WebShop [SEP] {_ASKED} [SEP] Search",
        "Thought: I search for the kind of product and its options, without the price.\n"
        "Action: search[hand made dishwasher safe mug sky blue 12 ounce]",
        f"{_ASKED} [SEP] Back to Search [SEP] Page 1 (Total results: 2) [SEP] Next > [SEP] "
        "X000000002 [SEP] Tall Stoneware Coffee Mug, Hand Made [SEP] $21.5 [SEP] X000000001 [SEP] "
        "Plastic Party Cups, Blue, Pack of 12 [SEP] $9.0",
        "Thought: The stoneware mug is hand made and costs $21.5, below 30 dollars. I open it.\n"
        "Action: click[X000000002]",
        _ITEM,
        "Thought: The color has to be sky blue. I choose it.\nAction: click[sky blue]",
        _ITEM,
        "Thought: The size has to be 12 ounce. I choose it.\nAction: click[12 ounce]",
        _ITEM,
        "Thought: Color and size are chosen and the price is right. I buy it.\n"
        "Action: click[Buy Now]",
        "Thank you for shopping with us!",
    ),
)
