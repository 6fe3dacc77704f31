"""The light half of dualsd: feature maps in, matches and scores out.

Needs torch and numpy only (matplotlib inside `matcher.plot`). Knows nothing of diffusion, datasets or disk, so that it
serves anybody's features. Start at `matcher.match` for two maps, at `matcher.sweep` for many pairs.
"""
