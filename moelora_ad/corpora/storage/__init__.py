"""Where the audio of corpora lies: folders, archives, remote places."""
