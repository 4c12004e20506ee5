"""Files and folders of this machine, none of them trusted."""
