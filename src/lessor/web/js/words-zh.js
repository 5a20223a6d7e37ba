// SPDX-License-Identifier: Apache-2.0
// 页面的中文文字。键为英文原文。
export const ZH = {};
