"""The palette paper's colour names: learned in rounds of purification, and given to pixels."""
