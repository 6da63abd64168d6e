"""How well masks and tracks fit: pure functions on numpy arrays, without torch.

Masks: `region` (J) and `boundary` (F) of single masks, `quality` of whole sequences, averaged by
`protocols` (DAVIS, referring video, SA-V) with `davis_statistics`; `referring` for images. Tracks:
`boxes`, `tracking` (curves), `tracking_benchmarks` (OTB, LaSOT, GOT-10k).

All values are fractions in [0, 1]; what benchmarks print in percent is made of them by
`protocols.MaskScores.percentages`.
"""
