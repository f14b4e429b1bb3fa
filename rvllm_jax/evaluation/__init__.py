"""Questions asked, answers scored."""
