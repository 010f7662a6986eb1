// SPDX-License-Identifier: MIT

/**
 * @file
 * What the control plane asks of a running session: reclaim, park, restore, figures of targets.
 *
 * Nothing is done on the control thread but reading. Evicting is the reclaim thread's and bringing
 * in is the business of the target's fault thread (see target.h), so both are asked, through the
 * table in request.h, and work in steps of a few hundred microseconds to a few milliseconds:
 * limits are kept and faults are answered meanwhile.
 */

#ifndef USW_CONTROL_H
#define USW_CONTROL_H

#include "session.h"

/** Go on with reclaims and parks for a step. Reclaim thread. True: there is more to do at once. */
bool usw_control_evict(struct usw_session *session);

/**
 * Go on with the restores of this thread's targets for a step. Returns when the next step is due,
 * in ms; -1 if none is.
 */
int usw_control_restore(struct usw_fault_thread *thread);

#endif /* USW_CONTROL_H */
