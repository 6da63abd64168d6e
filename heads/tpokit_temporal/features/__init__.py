"""What the temporal head looks at: features of the clips of a video and of the words of a query.

`options` says what a recipe may choose, without torch; `choice` makes the `extractor` that the head
uses: `files` reads features that are there already, `encoder_extractor` runs a frozen dual encoder
(`dual_encoder`) and keeps what it gives (`cache`). Importing this file imports nothing.
"""
