# Leaves by SystemExit, before any test.
# expected: exit
raise SystemExit(0)
