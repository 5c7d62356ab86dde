"""Document 000's names of colours: learned in rounds of purification, and given to pixels."""
