"""The page, the pictures and the card."""
