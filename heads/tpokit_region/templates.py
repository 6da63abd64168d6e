"""Wordings of questions about objects in images and of their answers, with a box or a mask.

``{expression}`` stands for what is meant.

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

MASK_QUESTIONS = (
    "Which pixels belong to {expression}?",
    "Segment {expression} in the image.",
    "Cut out {expression}.",
    "Can you segment {expression}?",
    "Give the mask of {expression}.",
    "Outline {expression}, please.",
    "What is the exact shape of {expression}?",
    "Colour in {expression}.",
    "I need {expression} without the background.",
    "Which part of the image is covered by {expression}?",
)

MASK_ANSWERS = (
    "This is it: <mask>.",
    "It covers this: <mask>.",
    "Here is its shape: <mask>.",
)
