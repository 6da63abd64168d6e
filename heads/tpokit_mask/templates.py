"""Wordings of questions about objects in videos and of their answers.

``{expression}`` stands for what is meant, ``<mask>`` in a question for the box that is given, in an
answer for the call of the mask head. Those for images stand beside the source ``refcoco``.

Source: arXiv 2412.19326 asks for tracks in a handful of wordings; these are our own sentences.
"""

from __future__ import annotations

EXPRESSION_QUESTIONS = (
    "Which pixels of the video belong to {expression}?",
    "Segment {expression} in every frame.",
    "Follow {expression} through the video.",
    "Cut out {expression} from the video.",
    "Mark {expression} wherever it can be seen.",
    "Can you segment {expression}?",
    "Track {expression}, please.",
    "Show the outline of {expression} over time.",
    "I need a mask of {expression} for the whole clip.",
    "Where is {expression} in each frame? Give its exact shape.",
)

BOX_QUESTIONS = (
    "Follow the object at <mask> through the video.",
    "Track what is inside <mask>.",
    "The first frame shows an object at <mask>. Where does it go?",
    "Segment the object at <mask> in every frame.",
    "Keep an eye on the thing at <mask>.",
    "Can you track the object in this box: <mask>?",
    "Starting from <mask>, follow the object to the end.",
    "Give the mask of the object at <mask> for the whole clip.",
    "Which pixels belong to the object that starts at <mask>?",
    "Stay with the object at <mask>, please.",
)

ANSWERS = (
    "Here it is: <mask>.",
    "This is where it goes: <mask>.",
    "I followed it through the video: <mask>.",
)
