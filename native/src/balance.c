// SPDX-License-Identifier: MIT

/**
 * @file
 * The marginal gains of two uses of one memory. See balance.h.
 */

#include "balance.h"

#define USW_BALANCE_NS 200000000u
/* With fewer faults than this there is nothing to go by. */
#define USW_BALANCE_FAULTS 64u
#define USW_STORED_MIN (USW_BALANCE_PARTS / 8)
#define USW_STORED_MAX (USW_BALANCE_PARTS / 16 * 13)
/* In a small budget this much stays for what is resident, if that is not more than half. */
#define USW_RESIDENT_BYTES (16u << 20)
/* A fault on RAM, and its page's next way out, which takes the other processor for longer. */
#define USW_NEAR_NS 20000u
/* One side has to weigh so much more, in quarters, before the share moves. */
#define USW_BALANCE_QUARTERS 6u

void usw_balance_init(struct usw_balance *balance)
{
	*balance = (struct usw_balance){.stored_parts = USW_BALANCE_PARTS / 2};
}

/** What the disk's faults cost beyond what they would in RAM, of those that so much more RAM saves. */
static double stored_gain_ns(uint64_t faults, uint64_t waited_ns, uint64_t bytes,
			     uint64_t disk_bytes)
{
	double saved = bytes < disk_bytes ? (double)bytes / (double)disk_bytes : 1;
	double extra_ns = (double)waited_ns - (double)faults * USW_NEAR_NS;

	return extra_ns > 0 ? saved * extra_ns : 0;
}

void usw_balance_look(struct usw_balance *balance, const struct usw_balance_seen *seen,
		      uint64_t now_ns)
{
	uint64_t near_faults = seen->near_faults - balance->near_faults;
	uint64_t disk_faults = seen->disk_faults - balance->disk_faults;
	uint64_t disk_ns = seen->disk_ns - balance->disk_ns;

	if (now_ns - balance->looked_ns < USW_BALANCE_NS ||
	    near_faults + disk_faults < USW_BALANCE_FAULTS)
		return;
	double resident = (double)near_faults * USW_NEAR_NS;
	double stored = stored_gain_ns(disk_faults, disk_ns, seen->memory_bytes / USW_NEAR_SHARE,
				       seen->disk_bytes);

	if (stored * 4 > resident * USW_BALANCE_QUARTERS && balance->stored_parts < USW_STORED_MAX)
		balance->stored_parts++;
	else if (resident * 4 > stored * USW_BALANCE_QUARTERS &&
		 balance->stored_parts > USW_STORED_MIN)
		balance->stored_parts--;
	balance->looked_ns = now_ns;
	balance->near_faults = seen->near_faults;
	balance->disk_faults = seen->disk_faults;
	balance->disk_ns = seen->disk_ns;
}

uint64_t usw_balance_stored_bytes(const struct usw_balance *balance, uint64_t memory_bytes)
{
	uint64_t bytes = memory_bytes / USW_BALANCE_PARTS * balance->stored_parts;
	uint64_t resident = usw_min(memory_bytes / 2, (uint64_t)USW_RESIDENT_BYTES);

	return usw_min(bytes, memory_bytes - resident);
}
