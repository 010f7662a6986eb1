// SPDX-License-Identifier: MIT

/**
 * @file
 * Slots of disks in which nothing lives any more, on their way back.
 *
 * The owner of the segments says which; to punch a hole takes a while, so the mover does it. Slots
 * of a file that leaves as a whole are held back and go with the file.
 */

#ifndef USW_DEADSLOT_H
#define USW_DEADSLOT_H

#include "tier.h"

/** Nothing of a segment lives at `where` any more. `context` is the struct usw_tiers. Owner only. */
void usw_deadslots_note(void *context, uint64_t where, uint32_t segment);

/** Slots that were held back for a tier that leaves. Owner only. */
uint32_t usw_deadslots_held_back(const struct usw_tiers *tiers, uint32_t number);

/** The file is gone, and with it its slots. Owner only. */
void usw_deadslots_drop(struct usw_tiers *tiers, uint32_t number);

/**
 * Give slots that were held back to the mover, as fast as it can take them, but for those of files
 * that leave. Owner only.
 */
void usw_deadslots_give(struct usw_tiers *tiers);

#endif /* USW_DEADSLOT_H */
