"""Wordings of grounding questions and answers; ``{expression}`` stands for what is meant.

Source: arXiv 2412.19326 draws one of ten questions for each sample; these are our own sentences.
"""

from __future__ import annotations

QUESTIONS = (
    "Where is {expression}?",
    "Find {expression} in the image.",
    "Show me {expression}.",
    "Can you point out {expression}?",
    "Give the box of {expression}.",
    "Locate {expression}, please.",
    "In which part of the image is {expression}?",
    "Mark {expression}.",
    "I am looking for {expression}. Where should I look?",
    "Which region shows {expression}?",
)

ANSWERS = (
    "It is here: <region>.",
    "Here it is: <region>.",
    "You can find it here: <region>.",
)
