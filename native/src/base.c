// SPDX-License-Identifier: MIT

/**
 * @file
 * The end of an agent that met a contradiction: one line on stderr, then abort.
 */

#include <stdio.h>

#include "base.h"

_Noreturn void usw_assert_failed(const char *expression, const char *file, int line)
{
	dprintf(STDERR_FILENO,
		"uffdswap: internal error at %s:%d: %s; stopping before it can harm data\n", file,
		line, expression);
	abort();
}
