// SPDX-License-Identifier: MIT

/**
 * @file
 * The thread that opens. See opener.h.
 */

#include "opener.h"
#include "futex.h"
#include "landing.h"

static void open_move(struct usw_opener *opener)
{
	struct usw_tiers *tiers = opener->tiers;
	struct usw_move *move = opener->move;

	move->request.result = usw_land(tiers, &opener->sealer, move, NULL);
	atomic_fetch_and(&opener->work, ~(uint32_t)USW_OPENER_HAS);
	atomic_store_explicit(&move->stage, USW_MOVE_DONE, memory_order_release);
	tiers->hooks.moved(tiers->hooks.context);
}

static void *opener_main(void *argument)
{
	struct usw_opener *opener = argument;

	for (;;) {
		uint32_t work = atomic_load(&opener->work);

		if (work & USW_OPENER_HAS)
			open_move(opener);
		else if (work & USW_OPENER_ENDS)
			return NULL;
		else
			usw_futex_wait(&opener->work, 0, NULL);
	}
}

static void tell(struct usw_opener *opener, enum usw_opener_work bit)
{
	atomic_fetch_or(&opener->work, bit);
	usw_futex_wake(&opener->work, 1);
}

void usw_opener_start(struct usw_opener *opener, struct usw_tiers *tiers)
{
	opener->tiers = tiers;
	if (tiers->is_sealed && usw_sealer_init(&opener->sealer, &tiers->key))
		return;
	opener->is_started = pthread_create(&opener->thread, NULL, opener_main, opener) == 0;
	if (opener->is_started)
		pthread_setname_np(opener->thread, "uffdswap-opener");
	else
		usw_sealer_deinit(&opener->sealer);
}

void usw_opener_stop(struct usw_opener *opener)
{
	if (!opener->is_started)
		return;
	tell(opener, USW_OPENER_ENDS);
	pthread_join(opener->thread, NULL);
	usw_sealer_deinit(&opener->sealer);
	opener->is_started = false;
	opener->work = 0;
}

bool usw_opener_take(struct usw_opener *opener, struct usw_move *move)
{
	if (!opener->is_started || atomic_load(&opener->work))
		return false;
	opener->move = move;
	tell(opener, USW_OPENER_HAS);
	return true;
}
