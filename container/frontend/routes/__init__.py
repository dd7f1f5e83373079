"""One module for each dialect; each makes a Flask blueprint from its collaborators."""
