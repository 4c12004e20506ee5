"""Files and folders of this machine; no file is trusted."""
