/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "entry.h"

	.text
	.code64
	entry	nmi_entry payload_nmi
