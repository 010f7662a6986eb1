// SPDX-License-Identifier: MIT

/**
 * @file
 * The accounts of a session: what it holds in RAM beside its targets, and what is left for them.
 *
 * They are brought up to date again and again while the reclaim thread works, because what leaves is
 * kept in RAM at first, and takes of the same budget. All of it belongs to that thread; others read
 * the results, which are atomic.
 */

#ifndef USW_ACCOUNT_H
#define USW_ACCOUNT_H

#include "session.h"

/** While the reclaim thread works it brings the accounts up to date this often. */
#define USW_ACCOUNT_NS 500000u
/** A program that has not had a fault for so long is not crawling: it may be frozen. */
#define USW_FAULTED_NS 3000000000u

/** Bring the accounts up to date, if that is due. True: it was. */
bool usw_account_if_due(struct usw_session *session);

/** Do so at once: whoever hears that a target is gone finds the accounts without it. */
void usw_account_freed(struct usw_session *session);

/** The agent's own anonymous memory. The spaces are shared memory and counted by themselves. */
uint64_t usw_account_own_bytes(void);

/** Room the reclaim thread keeps ahead of need. */
int64_t usw_account_reserve_pages(const struct usw_session *session);

/** Whether a program has had a fault lately. */
static inline bool usw_account_has_faulted(const struct usw_reclaim *reclaim)
{
	return usw_now_ns() - reclaim->faulted_ns <= USW_FAULTED_NS;
}

static inline unsigned long long usw_account_mib(uint64_t bytes)
{
	return (unsigned long long)bytes >> 20;
}

#endif /* USW_ACCOUNT_H */
