/* SPDX-License-Identifier: MIT */

/**
 * @file
 * Bringing pages in before they are asked for: what a stream will want, and neighbours where faults
 * are dense.
 *
 * It is given up at the first trouble, since the pages that are missing will be asked for, and
 * never takes the last room. Everything here runs on the target's fault thread; no lock is held.
 */

#ifndef USW_PREFETCH_H
#define USW_PREFETCH_H

#include "target.h"

/**
 * Bring in what the stream of a fault will ask for, in address order and in runs,
 * whatever backends hold it.
 */
void usw_prefetch_stream(struct usw_fault_thread *thread, struct usw_target *target,
			 const struct usw_fault *fault, const struct usw_forecast *forecast);

/** Bring in the neighbours of a fault's page if faults are dense there, but for one that is left out. */
void usw_prefetch_cluster(struct usw_fault_thread *thread, struct usw_target *target,
			  const struct usw_fault *fault);

#endif /* USW_PREFETCH_H */
