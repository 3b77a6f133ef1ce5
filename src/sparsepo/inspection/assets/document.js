"use strict";
themeButton(document.getElementById("theme"));
document.documentElement.dataset.ready = "true";
