"""Wordings of questions about moments and of their answers.

``{query}`` stands for the sentence that is looked for, ``{seconds}`` (answers only) for start and
end of its moments, such as ``23.0-27.0``.

Source: arXiv 2412.19326 and TimeIT (arXiv 2312.02051) draw one of several questions for each
sample; these are our own sentences. Their answers state the seconds in words too; ours do not, the
head knows them better: ``"It happens in {seconds} seconds: <temporal>."`` is such an answer.
"""

from __future__ import annotations

QUESTIONS = (
    'When does this happen in the video: "{query}"',
    'Find the moment of the video that fits "{query}".',
    'At what time can this be seen: "{query}"',
    'Which part of the video shows this: "{query}"',
    'Tell me the start and the end of "{query}".',
    'Where in the video should I look for "{query}"?',
    'Search the video for "{query}" and give the time.',
    'From when to when does the video show "{query}"?',
    'Point out when this takes place: "{query}"',
    'I want to watch only this: "{query}". Which seconds are they?',
)

ANSWERS = (
    "It happens here: <temporal>.",
    "This is the time: <temporal>.",
    "You can see it at <temporal>.",
)
