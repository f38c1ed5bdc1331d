"""A package whose own dependency is missing."""

import a_package_that_nobody_has

Broken = a_package_that_nobody_has.Broken
