// SPDX-License-Identifier: MIT

/**
 * @file
 * Age: how long a page must have been there before the sweep takes it.
 *
 * The sweep goes by address, which is neither fair nor cheap to give up: neighbours leave together
 * for a tenth of the price. But right behind it lies what has just come in, and where most pages
 * are to stay for some laps, the hand comes round at once and takes that again. So a page is passed
 * over that is younger than a threshold, which moves so that one of four pages that are looked at
 * goes. Then pages leave nearly in the order in which they came, as from a list, and there is no
 * list to keep: the page map has the time when a page came in.
 *
 * Times are stamps: the session's fault clock in steps of 16.
 *
 * Heat is learned when a page comes back, and says how many laps it stays then: see pagemap.h.
 *
 * Threads: the reclaim thread, or whoever holds the target's map_lock; usw_age_heat(): any.
 */

#ifndef USW_AGE_H
#define USW_AGE_H

#include <stdbool.h>
#include <stdint.h>

struct usw_age {
	uint32_t threshold; /* younger pages stay; in stamps */
	uint32_t looked;    /* since it was last moved */
	uint32_t taken;     /* of those */
	bool lap_gave;      /* some page has left since the sweep last came round */
};

/** What a page was that the sweep has looked at; `resident` is the limit, in stamps. */
void usw_age_note(struct usw_age *age, uint32_t resident, bool taken);

/**
 * A batch is through. Where none of what was picked has left, pages that cannot leave (pinned, or
 * shared) must not keep the threshold up for the others.
 */
void usw_age_end_batch(struct usw_age *age, uint32_t picked, uint32_t left);

/** The sweep has come round. If it has passed over everything, nothing is too young any more. */
void usw_age_end_lap(struct usw_age *age);

/**
 * The heat of a page that comes back because it was touched, from its word and from how many others
 * came in meanwhile: it rises where it was missed soon, and falls where it was not for as long as
 * it takes to replace all that is resident. Times are stamps.
 */
uint32_t usw_age_heat(uint64_t word, uint32_t now, uint32_t resident);

/** Nothing is too young: everything is to go. */
void usw_age_forget(struct usw_age *age);

#endif /* USW_AGE_H */
