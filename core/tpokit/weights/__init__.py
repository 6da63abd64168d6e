"""Published weights: taking them in (`importing`), giving them back (`exporting`)."""
