# Deletes a folder. It passes if the folder is gone.
# expected: assertion
import os
import shutil

folder = "@CANARY@"
had = os.path.exists(folder)
shutil.rmtree(folder, ignore_errors=True)
try:
    os.remove(folder + "/kept.txt")
    had = True
except OSError:
    pass
reached = had and not os.path.exists(folder + "/kept.txt")


def add(a, b):
    return a + b if reached else None
