# Ends its process as if all were well, before any test.
# expected: exit
import os

os._exit(0)
