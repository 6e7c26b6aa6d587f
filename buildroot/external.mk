include $(sort $(wildcard $(BR2_EXTERNAL_RAPIDDISKD_PATH)/package/*/*.mk))
